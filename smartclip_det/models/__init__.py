"""Networks: towers and vocabulary below, parts registered for MMDetection above."""
