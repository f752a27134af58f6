"""What notebooks 06, 08 and 09 draw on: trainings beside each other, looked at on the way."""
