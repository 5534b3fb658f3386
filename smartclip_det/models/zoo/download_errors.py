"""What stops a download, in one line: what, where, and what to do next."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from typing import Any, TypeVar

from smartclip_det.core.errors import UserError
from smartclip_det.models.zoo.names import Source
from smartclip_det.utils.disk import is_full_disk

T = TypeVar("T")
ROOM = "Make room, or move the cache (HF_HOME, TORCH_HOME)."


class UnreachableError(UserError):
    """A source that does not give its file; another one may."""


def translate_errors(source: Source, download: Callable[..., T], *given: Any) -> T:
    """Run a download by a library, with its errors in our words.

    Raises:
        UnreachableError: where the source does not give the file.
        UserError: where no source could help: a full disk, a wrong hash.
    """
    try:
        return download(*given)
    except UserError:
        raise
    except Exception as error:
        raise _told(error, source) from error


def _told(error: Exception, source: Source) -> UserError:
    from huggingface_hub import constants, errors

    if is_full_disk(error):
        return UserError(
            f"The disk is full: {source} was not kept, nothing else is lost. {ROOM} Then run the same command again."
        )
    page = f"{constants.ENDPOINT}/{source.hub}"
    if isinstance(error, errors.GatedRepoError):
        return UnreachableError(f"{source} is gated: accept its terms at {page}, then `hf auth login` or set HF_TOKEN.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnreachableError(f"There is no repository {page}, or it is private: check the name, or `hf auth login`.")
    if isinstance(error, errors.RevisionNotFoundError):
        return UnreachableError(f"{page} has no revision {source.revision!r}.")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return _not_here(error, source)
    if isinstance(error, errors.EntryNotFoundError):
        return UnreachableError(f"{page} has no file {source.file!r}; its list of files is at {page}/tree/main.")
    return _broken(error, source)


def _not_here(error: Exception, source: Source) -> UserError:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return UnreachableError(
            f"{source} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids the "
            "network: unset it, or copy that folder from a machine that has the file."
        )
    return UnreachableError(
        f"{source} is not in {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not answer: check "
        "the network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT)."
    )


def _broken(error: Exception, source: Source) -> UserError:
    said = f"{type(error).__name__}: {_first_line(error)}"
    if "invalid hash value" in str(error):
        return UserError(f"{source} did not arrive as published ({_first_line(error)}); it was not kept. Try again.")
    if isinstance(error, urllib.error.HTTPError):
        return UnreachableError(f"{source} answers {error.code} {error.reason}.")
    return UnreachableError(f"The download of {source} broke off ({said}). Run the same command again.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
