"""What this host offers: read-only probes, before anything is done."""
