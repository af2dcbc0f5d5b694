"""``headrace bench …``: a file for every kind of measurement, its flags and what it prints."""

from headrace.cli.parser import Group

GROUP = Group(
    "headrace bench",
    "headrace.cli.bench",
    "Measures a server or an engine, and says how near each figure is to what the device allows.",
    {
        "serve": "Put a load on a server that speaks OpenAI's API, and time its answers.",
        "latency": "Time batches of requests on an engine in this process.",
        "throughput": "Run many requests at once on an engine in this process.",
        "startup": "Time how long a new process takes until its engine is ready.",
        "sweep": "Measure many loads and server configurations; find where a server saturates, and what keeps an SLO.",
        "plot": "Draw figures of results, and list each request's TTFT and TPOT.",
        "report": "Write one HTML page about a folder of results.",
    },
)
