"""Where rows come from. Files are read in place; everything else is landed as files on this disk first.

landing.py       what a source's files are right now; how a remote place becomes files, whole or not at all
files.py         digests of files that lie here
fetched.py       what one look at a remote place brought; rows as a sorted JSONL file
http.py          one file, or a paged REST API
sql.py           a query's result, whole or above a watermark
storage.py       s3://, hdfs:// and what else fsspec knows
huggingface.py   a dataset of the Hub, or one saved to disk
secrets.py       the value behind env:NAME or file:/path
"""
