"""Speed, as ratios of two things run in turn: `python -m tests.bench`. Machines are noisy; only ratios count."""
