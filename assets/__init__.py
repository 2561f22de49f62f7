"""The line of assets of one project, one module per noun: digests in, guard, stage launched, digest out."""
