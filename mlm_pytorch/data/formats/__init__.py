"""What a file holds -> documents, one module per family of formats.

    text            lines, paragraphs or whole files
    json_records    JSON lines, and JSON: an array of objects, or objects spread over lines
    csv_records     CSV and TSV
    columns         Parquet, Arrow IPC (also folders saved by `datasets`), and the Hub through `datasets`
    fasta           FASTA and FASTQ
    npy             NumPy arrays of ids

Each reader takes its input and a `Reading` (in `record`), and yields a `Document` per record.
"""
