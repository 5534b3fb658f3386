"""Analysis of encoders and masks: region probe, mask statistics, vocabulary report."""
