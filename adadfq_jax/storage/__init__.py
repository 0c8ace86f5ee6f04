"""Files on a disk and in Cloud Storage (`files`), owners of folders (`ownership`), `digests`."""
