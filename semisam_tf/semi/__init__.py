"""Semi-supervised learning: schedules, losses, the EMA teacher, frameworks."""
