"""Publishes stored items and outbox rows as messages, and waits until the broker confirms them."""
