"""What a ranking is worth: metrics as mergeable states, calibration, slices, intervals and paired tests. No torch."""
