"""A run on several hosts, written down for the engine that starts it. Nothing here schedules anything."""
