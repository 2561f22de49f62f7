"""What Bedrock and SageMaker share: the recipe's credentials, files in S3, errors in the platform's form."""

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.provider import Bedrock, SageMaker
from ftaas_pipelines.store import file_digest
from resources.providers.job import Unreachable

_TIMEOUT_S = 60
_ATTEMPTS = 4  # of boto3's own: throttling, 5xx, broken connections
_BUSY = ("Throttling", "TooManyRequests", "RequestLimitExceeded", "SlowDown", "ServiceUnavailable")
_NO_LEAVE = (
    "AccessDenied",
    "UnrecognizedClient",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "AuthFailure",
)
_WRONG = ("Validation", "NoSuchBucket", "InvalidParameter", "ResourceLimitExceeded", "ServiceQuotaExceeded")


class Account:
    """The AWS account of one recipe."""

    def __init__(self, provider: Bedrock | SageMaker, title: str):
        self._provider, self._title = provider, title
        names = (provider.access_key, provider.secret_key, provider.session_token)
        self._keys = [secrets.value(name) if name else None for name in names]
        self.secrets = [key for key in self._keys if key]
        self._clients: list[Any] = []

    @cached_property
    def _session(self) -> Any:
        from boto3.session import Session

        access, secret, token = self._keys
        return Session(access, secret, token, region_name=self._provider.region)

    def client(self, service: str) -> Any:
        """A client of one service, closed with the account."""
        from botocore.config import Config

        with self.explained():
            made = self._session.client(
                service,
                endpoint_url=self._provider.endpoint_url,
                config=Config(
                    connect_timeout=_TIMEOUT_S,
                    read_timeout=_TIMEOUT_S,
                    retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                ),
            )
        self._clients.append(made)
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()

    @cached_property
    def _s3(self) -> Any:
        return self.client("s3")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """The errors of boto3 in the platform's form, with what AWS said; the caller hides secrets.

        Raises:
            Unreachable: it may work later.
            InputInvalid: credentials, role, bucket or a value is wrong.
            FtaasError: anything else that AWS says.
        """
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            NoCredentialsError,
            ParamValidationError,
        )

        try:
            yield
        except ClientError as error:
            raise self._said(error) from None
        except S3UploadFailedError as error:
            if isinstance(error.__context__, ClientError):
                raise self._said(error.__context__) from None
            raise FtaasError(f"{self._title} takes no file", self.bucket_url(), str(error)) from None
        except NoCredentialsError:
            do = "name access_key and secret_key, or give the machine a profile or a role"
            raise InputInvalid("no AWS credentials are found", self._title, do=do) from None
        except ParamValidationError as error:
            raise InputInvalid(f"{self._title} does not take this", "provider", str(error)) from None
        except (ConnectionError, HTTPClientError) as error:
            raise Unreachable(f"{self._title} does not answer", self._provider.region, str(error)) from None
        except BotoCoreError as error:
            raise FtaasError(f"{self._title} cannot be asked", self._provider.region, str(error)) from None

    def _said(self, error: Any) -> FtaasError:
        answer = error.response
        code, message = answer["Error"].get("Code", ""), answer["Error"].get("Message", "")
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        got = f"{code}: {message}"
        if status >= 500 or status == 429 or code.startswith(_BUSY):
            return Unreachable(f"{self._title} fails or has too much to do", error.operation_name, got)
        if code.startswith(_NO_LEAVE) or status in (401, 403):
            do = "mend the credentials, or what they and role_arn are allowed to do"
            return InputInvalid(f"{self._title} gives no leave", error.operation_name, got, do)
        if code.startswith(_WRONG):
            return InputInvalid(f"{self._title} refuses this", error.operation_name, got, "mend the recipe")
        return FtaasError(f"{self._title} refuses this", error.operation_name, got)

    # -- files ---------------------------------------------------------------------------------

    def bucket_url(self, *path: str) -> str:
        """`s3://bucket/prefix/path`."""
        return "/".join([f"s3://{self._provider.bucket}", self._provider.prefix, *path])

    def upload(self, file: Path, url: str) -> None:
        """Bring a file to its place; not again when the same bytes are there."""
        bucket, key = split_url(url)
        digest = file_digest(file)
        if self._digest(bucket, key) == digest:
            return
        extra: dict[str, Any] = {"Metadata": {"sha256": digest}}
        if self._provider.kms_key:
            extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._provider.kms_key}
        with self.explained():
            self._s3.upload_file(str(file), bucket, key, ExtraArgs=extra)

    def _digest(self, bucket: str, key: str) -> str | None:
        """What `upload` wrote down of an object; None where there is none, or nothing may be asked of it."""
        from botocore.exceptions import ClientError

        with self.explained():
            try:
                return self._s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404):
                    return None
                raise

    def download(self, url: str, file: Path) -> None:
        bucket, key = split_url(url)
        with self.explained():
            self._s3.download_file(bucket, key, str(file))

    def read(self, url: str) -> bytes:
        bucket, key = split_url(url)
        with self.explained():
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def below(self, url: str) -> list[str]:
        """The URLs of the objects below one, sorted."""
        bucket, prefix = split_url(url)
        with self.explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
        return [f"s3://{bucket}/{key}" for key in sorted(keys)]


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of an S3 URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def not_found(error: FtaasError) -> bool:
    """Whether AWS said that there is no such job: each service does so in its own way."""
    got = error.problems[0].got.lower()
    return "notfound" in got or "not found" in got or "could not find" in got
