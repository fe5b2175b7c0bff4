/* A stand-in for libnvidia-ml.so.1 that answers from a scenario file ($NVML_SCENARIO), for the real nvidia-ml-py to call.
 *
 * Scenario: one answer a line, `KEY VALUE` for the system, `gpu N KEY VALUE` for a GPU, `gpu N mig M KEY VALUE` for a MIG instance.
 * A value `!N` is the NVML error N. A key that is not there is error 3 (not supported). `#` begins a comment.
 * `memory` is "total reserved free"; `compute` and `graphics` are "pid:bytes,…" or "none", where bytes `-` means not available; `process PID NAME` names one.
 * -DVERY_OLD leaves out nvmlInitWithFlags, as drivers before 378 do; -DOLD the versioned calls that came with driver 510. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25 };
enum { MAX_LINES = 512, MAX_DEVICES = 64 };

typedef struct { char key[64]; } Device; /* what the lines of this device begin with */
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;

static char lines[MAX_LINES][512];
static int line_count = -1; /* -1: not initialized */
static Device devices[MAX_DEVICES];
static int device_count;

static int load(void) {
    const char *path = getenv("NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) { fprintf(stderr, "NVML_SCENARIO is not a readable file\n"); abort(); }
    line_count = 0;
    while (line_count < MAX_LINES && fgets(lines[line_count], sizeof lines[0], file)) {
        lines[line_count][strcspn(lines[line_count], "\n")] = 0;
        if (lines[line_count][0] && lines[line_count][0] != '#') line_count++;
    }
    fclose(file);
    return OK;
}

/* The value after `prefix key `, or the error that stands for it. */
static int answer(const char *prefix, const char *key, const char **value) {
    char start[160];
    if (line_count < 0) return UNINITIALIZED;
    snprintf(start, sizeof start, "%s%s ", prefix, key);
    for (int i = 0; i < line_count; i++) {
        if (strncmp(lines[i], start, strlen(start))) continue;
        *value = lines[i] + strlen(start);
        return **value == '!' ? atoi(*value + 1) : OK;
    }
    return NOT_SUPPORTED;
}

static int answer_text(const char *prefix, const char *key, char *out, unsigned size) {
    const char *value;
    int error = answer(prefix, key, &value);
    if (error) return error;
    if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return OK;
}

static int answer_number(const char *prefix, const char *key, unsigned *out) {
    const char *value;
    int error = answer(prefix, key, &value);
    if (!error) *out = (unsigned)strtoul(value, NULL, 10);
    return error;
}

static int open_device(const char *key, Device **out) {
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].key, key)) { *out = &devices[i]; return OK; }
    if (device_count == MAX_DEVICES) return INVALID_ARGUMENT;
    strcpy(devices[device_count].key, key);
    *out = &devices[device_count++];
    return OK;
}

static int start(void) {
    const char *value;
    load();
    int error = answer("", "init", &value);
    if (error && error != NOT_SUPPORTED) { line_count = -1; return error; }
    return OK;
}
int nvmlInit_v2(void) { return start(); }
#ifndef VERY_OLD
int nvmlInitWithFlags(unsigned flags) { (void)flags; return start(); }
#endif
int nvmlShutdown(void) {
    FILE *file = getenv("NVML_SHUTDOWN_MARK") ? fopen(getenv("NVML_SHUTDOWN_MARK"), "w") : NULL;
    if (file) fclose(file);
    line_count = -1;
    return OK;
}
const char *nvmlErrorString(int error) { (void)error; return "error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) { return answer_text("", "driver", out, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { return answer_number("", "cuda", (unsigned *)out); }
int nvmlDeviceGetCount_v2(unsigned *out) { return answer_number("", "count", out); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) {
    char key[64];
    const char *value;
    snprintf(key, sizeof key, "gpu %u ", index);
    int error = answer(key, "handle", &value);
    return error && error != NOT_SUPPORTED ? error : open_device(key, out);
}
int nvmlDeviceGetName(Device *device, char *out, unsigned size) { return answer_text(device->key, "name", out, size); }
int nvmlDeviceGetUUID(Device *device, char *out, unsigned size) { return answer_text(device->key, "uuid", out, size); }
int nvmlDeviceGetArchitecture(Device *device, unsigned *out) { return answer_number(device->key, "architecture", out); }
int nvmlDeviceGetDisplayActive(Device *device, unsigned *out) { return answer_number(device->key, "display", out); }
int nvmlDeviceGetComputeMode(Device *device, int *out) { return answer_number(device->key, "compute_mode", (unsigned *)out); }
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *out) { return answer_number(device->key, "mig_slots", out); }

int nvmlDeviceGetClockInfo(Device *device, int type, unsigned *out) {
    return answer_number(device->key, type == 1 ? "sm_clock" : type == 2 ? "memory_clock" : "other_clock", out);
}
int nvmlDeviceGetPowerUsage(Device *device, unsigned *out) { return answer_number(device->key, "power", out); }
int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *out) { return answer_number(device->key, "power_limit", out); }
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *out) { (void)sensor; return answer_number(device->key, "temperature", out); }
int nvmlDeviceGetUtilizationRates(Device *device, unsigned *out) { out[1] = 0; return answer_number(device->key, "utilization", out); }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *out) {
    unsigned reasons = 0;
    int error = answer_number(device->key, "reasons", &reasons);
    *out = reasons;
    return error;
}
#ifndef OLD /* named so since driver 535 */
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *out) { return nvmlDeviceGetCurrentClocksThrottleReasons(device, out); }
#endif

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    const char *value;
    int error = answer(device->key, "capability", &value);
    if (!error && sscanf(value, "%d.%d", major, minor) != 2) abort();
    return error;
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    int error = answer_number(device->key, "mig_mode", current);
    if (!error) *pending = *current;
    return error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **out) {
    char key[64];
    const char *value;
    snprintf(key, sizeof key, "%.32smig %u ", device->key, index);
    int error = answer(key, "uuid", &value);
    return error == NOT_SUPPORTED ? NOT_FOUND : error ? error : open_device(key, out);
}

static int memory(Device *device, MemoryV2 *out) {
    const char *value;
    int error = answer(device->key, "memory", &value);
    if (error) return error;
    if (sscanf(value, "%llu %llu %llu", &out->total, &out->reserved, &out->free) != 3) abort();
    out->used = out->total - out->reserved - out->free;
    return OK;
}
int nvmlDeviceGetMemoryInfo(Device *device, Memory *out) {
    MemoryV2 info;
    int error = memory(device, &info);
    if (!error) *out = (Memory){info.total, info.free, info.used + info.reserved};
    return error;
}
#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *out) {
    return out->version == (sizeof(MemoryV2) | 2u << 24) ? memory(device, out) : VERSION_MISMATCH;
}
#endif

static int processes(Device *device, const char *key, unsigned *count, Process *out) {
    const char *value;
    unsigned found = 0, room = *count;
    int error = answer(device->key, key, &value);
    if (error) return error;
    for (const char *at = value; *at && strcmp(value, "none"); at = strchr(at, ',') ? strchr(at, ',') + 1 : at + strlen(at)) {
        char *colon;
        unsigned pid = (unsigned)strtoul(at, &colon, 10);
        unsigned long long used = colon[1] == '-' ? ~0ull : strtoull(colon + 1, NULL, 10);
        if (out && found < room) out[found] = (Process){pid, used, ~0u, ~0u};
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}
#ifdef OLD
#define PROCESSES(kind) nvmlDeviceGet##kind##RunningProcesses_v2
#else
#define PROCESSES(kind) nvmlDeviceGet##kind##RunningProcesses_v3
#endif
int PROCESSES(Compute)(Device *device, unsigned *count, Process *out) { return processes(device, "compute", count, out); }
int PROCESSES(Graphics)(Device *device, unsigned *count, Process *out) { return processes(device, "graphics", count, out); }

int nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char key[32];
    snprintf(key, sizeof key, "process %u", pid);
    return answer_text("", key, out, size);
}
