# For children of complete MMDetection configs, which have their own runtime: only registers our components.
custom_imports = dict(imports=["smartclip_det.register_detection"], allow_failed_imports=False)
custom_hooks = [dict(type="FiniteGuardHook"), dict(type="ResumeHook")]
