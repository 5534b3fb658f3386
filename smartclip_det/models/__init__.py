"""Models: towers and vocabulary, and components registered for MMDetection."""
