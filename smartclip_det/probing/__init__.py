"""What an encoder and its masks do, measured: the region probe, mask statistics, the vocabulary report."""
