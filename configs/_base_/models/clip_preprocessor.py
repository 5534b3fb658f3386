# CLIP's image statistics, for RGB in 0..255; the tower pads to whole patches.
data_preprocessor = dict(
    type="DetDataPreprocessor",
    mean=[122.7709383, 116.7460125, 104.09373615],
    std=[68.5005327, 66.6321579, 70.32316305],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
