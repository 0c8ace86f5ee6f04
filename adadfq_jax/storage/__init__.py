"""Files on a disk and in Cloud Storage (`files`), who owns a folder (`ownership`), `digests`."""
