# Registers all components of smartclip_det; every config inherits this file.
_base_ = "./runtime.py"
custom_imports = dict(imports=["smartclip_det.register_detection"], allow_failed_imports=False)
default_scope = "mmdet"

default_hooks = dict(
    visualization=dict(type="DetVisualizationHook"),
    trainable=dict(type="TrainableCheckpointHook"),
)
visualizer = dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer")
