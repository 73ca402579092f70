"""Stored items and outbox rows become messages that the broker has confirmed."""
