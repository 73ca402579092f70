"""This process as a whole: its connections, its periodic threads, its heartbeat, its outages, and its exit."""
