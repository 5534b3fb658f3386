# SmartCLIP's loss on DeBias-CLIP's captions.
_base_ = "./smartclip-b16_1024-3e_sharegpt4v.py"

train_dataloader = dict(dataset=dict(texts=dict(policy=["full", "drop-first"], left_pad=0.5)))
