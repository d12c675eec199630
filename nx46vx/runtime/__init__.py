"""Services under everything: digests, durable files, locks, devices, the checkpoint store."""
