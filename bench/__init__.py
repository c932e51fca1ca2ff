"""What docs/speed.md says, measured on this machine: `make bench`."""
