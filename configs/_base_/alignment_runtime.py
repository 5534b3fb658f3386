# Registers the components of alignment runs; requires neither mmdet nor mmcv.
_base_ = "./runtime.py"
custom_imports = dict(imports=["smartclip_det.register_alignment"], allow_failed_imports=False)
default_scope = "mmengine"

# Keep two checkpoints: if a run is killed while it writes one, the previous one is intact.
default_hooks = dict(
    checkpoint=dict(max_keep_ckpts=2, backend_args=dict(backend="atomic")), learned_scale=dict(type="LearnedScaleHook")
)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
