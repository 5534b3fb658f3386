# Box-preserving loss: boxes of base shapes are matched with their masked texts; novel shapes have no boxes.
_base_ = "./smartclip-align_two-stage_toy.py"

model = dict(region_contrast=dict(weight=5.0, images=64, scale=15.0))
train_dataloader = dict(
    dataset=dict(
        regions=dict(
            file="annotations/instances_train.json",
            pattern="{colour} {category}",
            classes=[
                *("circle", "square", "triangle", "pentagon", "star", "heart"),
                *("cross", "ring", "diamond", "trapezoid", "arch", "hourglass"),
            ],
        )
    )
)
