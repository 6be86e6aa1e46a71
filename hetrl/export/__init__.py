"""Plans as what runtimes load: one file a format, found through the entry points `hetrl.exporters`."""
