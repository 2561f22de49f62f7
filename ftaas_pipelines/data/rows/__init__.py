"""Raw rows to records: the formats, what each row says, and a record's two identities."""
