# For children of complete MMDetection configs, which bring their own runtime: only what registers our parts.
custom_imports = dict(imports=["smartclip_det.register_detection"], allow_failed_imports=False)
custom_hooks = [dict(type="FiniteGuardHook"), dict(type="ResumeHook")]
