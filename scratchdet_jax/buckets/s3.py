"""S3 behind paths that begin with s3://: failures of the network and of rights are OSErrors."""

import errno
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError
from s3fs import S3FileSystem

from scratchdet_jax.errors import BucketError, one_line


class Bucket(S3FileSystem):
    """S3, whose every failure but that of a missing object is a BucketError."""

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except (BotoCoreError, PermissionError, TimeoutError) as error:
            raise BucketError(
                errno.EIO, one_line(error, 200), f"s3://{kwargs.get('Bucket', '')}"
            ) from error


def register() -> None:
    """Makes every library open s3:// by `Bucket`."""
    fsspec.register_implementation("s3", Bucket, clobber=True)
