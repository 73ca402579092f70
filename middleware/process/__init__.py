"""This process as a whole: its connections, its periodic threads, its heartbeat, outages, and its end."""
