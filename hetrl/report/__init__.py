"""What people read: tables and charts. Reads the domain alone."""
