"""The names of this module before it became annotations, predictions and json_files."""

from smartclip_det.formats.annotations import (  # noqa: F401
    IMAGES,
    GroundTruth,
    annotated_only,
    load_ground_truth,
    with_images,
)
from smartclip_det.formats.boxes import is_box, is_number  # noqa: F401
from smartclip_det.formats.json_files import read_json  # noqa: F401
from smartclip_det.formats.predictions import (  # noqa: F401
    check_predictions,
    read_lines,
    read_predictions,
    write_columnar,
)
