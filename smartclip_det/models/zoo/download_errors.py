"""One-line messages for failed downloads: what failed, where, and what to do next."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo.names import Source
from smartclip_det.utils.disk import is_full_disk

T = TypeVar("T")
ROOM = "Free some space, or move the cache (HF_HOME, TORCH_HOME)."


class UnreachableError(UserError):
    """A source that is unavailable; another one may work."""


def translate_errors(source: Source, download: Callable[..., T], *args: Any) -> T:
    """Run a library's download and translate its errors.

    Raises:
        UnreachableError: if this source is unavailable.
        UserError: if no other source would help: a full disk, a wrong hash.
    """
    try:
        return download(*args)
    except UserError:
        raise
    except Exception as error:
        raise _translated(error, source) from error


def _translated(error: Exception, source: Source) -> UserError:
    from huggingface_hub import constants, errors

    if is_full_disk(error):
        return UserError(f"The disk is full; {source} was not saved. {ROOM} Then run the same command again.")
    page = f"{constants.ENDPOINT}/{source.hub}"
    if isinstance(error, errors.GatedRepoError):
        return UnreachableError(
            f"{source} is gated: accept its terms at {page}, then run `hf auth login` or set HF_TOKEN."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnreachableError(
            f"There is no repository {page}, or it is private: check the name, or run `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UnreachableError(f"{page} has no revision {source.revision!r}.")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return _not_cached(error, source)
    if isinstance(error, errors.EntryNotFoundError):
        return UnreachableError(f"{page} has no file {source.file!r}; see its files at {page}/tree/main.")
    return _broken(error, source)


def _not_cached(error: Exception, source: Source) -> UserError:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return UnreachableError(
            f"{source} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE disables "
            "downloads: unset it, or copy that folder from a machine that has the file."
        )
    return UnreachableError(
        f"{source} is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not answer: check "
        "the network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT)."
    )


def _broken(error: Exception, source: Source) -> UserError:
    reason = f"{type(error).__name__}: {_first_line(error)}"
    if "invalid hash value" in str(error):
        return UserError(
            f"{source} does not match its published hash ({_first_line(error)}) and was not saved. Try again."
        )
    if isinstance(error, urllib.error.HTTPError):
        return UnreachableError(f"{source}: the server answered {error.code} {error.reason}.")
    return UnreachableError(f"The download of {source} was interrupted ({reason}). Run the same command again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
