"""A place whose backups lie in a bucket of a real S3 server."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.place import Place
from helpers.s3 import S3Server
from sandpoint.stores.s3 import S3Store
from sandpoint.stores.s3_client import Connection

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


class BucketPlace(Place):
    """A tree and a state directory here, a store in a bucket; `client` sees what lies there."""

    def __init__(
        self,
        base: Path,
        server: S3Server,
        *,
        bucket: str | None = None,
        url: str | None = None,
        direct: bool = False,
        **options: Any,
    ) -> None:
        """Make a bucket, if none is named.

        Args:
            base: The folder of the place.
            server: Where the bucket is.
            bucket: Its name.
            url: Another way to the server: its HTTPS endpoint, or a proxy.
            direct: Whether files go through the store's own client.
            options: See `Place`.
        """
        base.mkdir(exist_ok=True)
        self.server = server
        self.client: S3Client = server.client()
        self.bucket = bucket or server.make_bucket()
        connection = Connection(
            bucket=self.bucket,
            endpoint_url=url or server.http_url,
            region="us-east-1",
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
        )
        super().__init__(base, store=S3Store(connection, "some/prefix/", direct=direct), **options)

    def keys(self) -> dict[str, int]:
        """Return all keys of the store with their sizes."""
        found: dict[str, int] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            found |= {each["Key"].removeprefix("some/prefix/"): each["Size"] for each in page.get("Contents", ())}
        return found

    def content(self, key: str) -> bytes:
        """Return an object."""
        return self.client.get_object(Bucket=self.bucket, Key=f"some/prefix/{key}")["Body"].read()

    def replace(self, key: str, content: bytes) -> None:
        """Put another object in the place of one."""
        self.client.put_object(Bucket=self.bucket, Key=f"some/prefix/{key}", Body=content)

    def needed(self) -> set[str]:
        """Return the keys of all files of the store that belong to visible backups."""
        keys = set()
        for key in self.keys():
            if key.endswith("/meta.json"):
                metadata = json.loads(self.content(key))
                keys.add(key)
                if "formatVersion" in metadata:
                    files = (*metadata["layers"], metadata["manifest"], *metadata["parentManifests"])
                    keys.update(file["key"] for file in files)
                else:  # another program's
                    keys.add(key.replace("meta.json", "data.sqsh"))
        return keys

    def leftovers(self) -> list[str]:
        """Return what only a running operation may have, here and in the bucket."""
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        return [
            *super().leftovers(),
            *(f"upload of {upload['Key']}" for upload in uploads),
            *sorted(self.keys().keys() - self.needed()),
        ]
