"""MMDetection's operators implemented with torchvision and torch, so that nothing has to be compiled.

``mmcv-lite`` has ``mmcv.ops`` but not the compiled module ``mmcv._ext`` that it calls. :func:`finder.install`, run by
``import smartclip_det``, makes Python build that module from the functions here: ``boxes`` (NMS and overlaps),
``regions`` (region pooling), ``deformable`` (deformable attention, convolution and pooling), ``losses`` (focal loss)
and ``dense`` (operators on feature maps). Compiled operators take precedence if they are installed.

Importing this package imports neither torch nor mmcv.
"""
