"""Known rewards: functions from texts to scores, and their registry."""
