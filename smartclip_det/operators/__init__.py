"""MMDetection's operators by torchvision and torch, so that nothing has to be compiled.

``mmcv-lite`` holds ``mmcv.ops`` without the compiled module ``mmcv._ext`` that it calls. :func:`finder.install`,
run by ``import smartclip_det``, lets Python make that module of the functions here: ``boxes`` (NMS and overlaps),
``regions`` (pooling of regions), ``deformable`` (attention, convolution, pooling by offsets), ``losses`` (focal
loss) and ``dense`` (maps of features). Compiled operators, where installed, are found first and stay in force.

Importing this package imports neither torch nor mmcv.
"""
