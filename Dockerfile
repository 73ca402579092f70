# One image for everything: `callboard migrate`, `dramatiq callboard.actors`, `callboard serve`.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/callboard
ENV PATH=/opt/callboard/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.txt ./
RUN pip install --require-hashes --only-binary :all: -r requirements.txt
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home callboard
COPY --from=build /opt/callboard /opt/callboard
ENV PATH=/opt/callboard/bin:$PATH PYTHONUNBUFFERED=1
USER callboard
WORKDIR /home/callboard
EXPOSE 8000
# Nothing is open by itself: say which, see compose.yaml.
CMD ["callboard", "--help"]
