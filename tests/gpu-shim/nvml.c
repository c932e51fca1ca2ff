/* Stands in for NVIDIA's management library on a machine with two GPUs that are not there; the second one tells
   nothing but its memory. FAKE_NVML_INIT: what nvmlInit answers. */
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef const char *device_t;

static const char *uuids[] = {"GPU-aaaa", "GPU-bbbb"};

int nvmlInit_v2(void) {
    const char *answer = getenv("FAKE_NVML_INIT");
    return answer ? atoi(answer) : OK;
}
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int result) { (void)result; return "an error"; }

int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device_t *device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = uuids[index];
    return OK;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    for (int index = 0; index < 2; index++)
        if (!strcmp(uuid, uuids[index])) { *device = uuids[index]; return OK; }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(device_t device, unsigned int *index) { *index = device == uuids[1]; return OK; }

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    memory->total = 80000000000ULL;
    memory->used = device == uuids[0] ? 20000000000ULL : 1000000000ULL;
    memory->free = memory->total - memory->used;
    return OK;
}

static int say(char *text, unsigned int length, const char *what) {
    strncpy(text, what, length);
    return OK;
}
int nvmlSystemGetDriverVersion(char *text, unsigned int length) { return say(text, length, "570.1"); }
int nvmlDeviceGetUUID(device_t device, char *text, unsigned int length) { return say(text, length, device); }
int nvmlDeviceGetName(device_t device, char *text, unsigned int length) {
    return device == uuids[0] ? say(text, length, "NVIDIA Fake") : NOT_SUPPORTED;
}
int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor) {
    (void)device;
    *major = 9;
    *minor = 0;
    return OK;
}

int nvmlDeviceGetUtilizationRates(device_t device, utilization_t *rates) {
    if (device != uuids[0]) return NOT_SUPPORTED;
    rates->gpu = 87;
    rates->memory = 10;
    return OK;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned int *milliwatts) {
    if (device != uuids[0]) return NOT_SUPPORTED;
    *milliwatts = 350000;
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned int *milliwatts) {
    if (device != uuids[0]) return NOT_SUPPORTED;
    *milliwatts = 700000;
    return OK;
}
