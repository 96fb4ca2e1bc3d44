"""The launcher: devices, machines, processes and torch's elastic agent. It knows nothing about detection."""
