"""The line of assets of one project, one module per noun. Thin: digests in, guard, stage launched, digest out."""
