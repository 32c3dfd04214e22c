"""What judges said of models, measured: sums, intervals, biases, agreement, rank groups."""
