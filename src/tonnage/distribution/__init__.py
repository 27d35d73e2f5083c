"""The OCI registry that Tonnage embeds (OCI distribution-spec 1.1), as an `aiohttp.web` application over a folder."""
