from datetime import UTC, datetime, timedelta

from scan2twin.store.signing import Credentials, presigned_url


def test_amazons_own_example() -> None:
    """Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters": the example at its end."""
    credentials = Credentials(
        "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", None, "us-east-1"
    )  # fmt: skip
    url = presigned_url(
        "GET", "https://examplebucket.s3.amazonaws.com/test.txt", {}, credentials,
        datetime(2013, 5, 24, tzinfo=UTC), timedelta(days=1),
    )  # fmt: skip
    assert url.endswith("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")
