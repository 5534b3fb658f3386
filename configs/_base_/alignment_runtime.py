# Registers the parts of alignment runs; neither mmdet nor mmcv is needed.
_base_ = "./runtime.py"
custom_imports = dict(imports=["smartclip_det.alignment_parts"], allow_failed_imports=False)
default_scope = "mmengine"

default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
