"""Computers as devices: this one, and others over ssh, through a runner."""
