/* NVML's library (libnvidia-ml.so.1) of a machine with one GPU.

   The file that NVML_STUB names holds the answers, read at each question: `question=answer`, or `question(argument)=...`
   where there is one. `!15` refuses with NVML's error 15; a question that is not in the file is not supported.
   OLD_DRIVER leaves out what came with driver 510 or later. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUCCESS 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define LINE 4096
#define UNSIGNED_LONG_LONG 3

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 memory; unsigned gpu_instance, compute_instance; } Process;
typedef struct { u64 reference_ns, violation_ns; } Violation;
typedef struct {
    unsigned field, scope;
    long long timestamp, latency_us;
    int type, result;
    union { double real; u64 whole; } value;
} Field;

static char gpu, instance; /* a handle is the address of one */

static int ask(const char *question, char answer[LINE]) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t length = strlen(question);
    int result = NOT_SUPPORTED;
    char line[LINE];
    while (file && fgets(line, LINE, file))
        if (!strncmp(line, question, length) && line[length] == '=') {
            line[strcspn(line, "\n")] = 0;
            strcpy(answer, line + length + 1);
            result = *answer == '!' ? atoi(answer + 1) : SUCCESS;
        }
    if (file) fclose(file);
    return result;
}

/* A MIG instance has no clocks, modes or power of its own. */
static int ask_gpu(void *handle, const char *question, u64 *number) {
    char answer[LINE];
    int result = handle == &gpu ? ask(question, answer) : NOT_SUPPORTED;
    if (!result) *number = strtoull(answer, NULL, 10);
    return result;
}

static int ask_gpu_about(void *handle, const char *question, unsigned argument, u64 *number) {
    char full[LINE];
    snprintf(full, LINE, "%s(%u)", question, argument);
    return ask_gpu(handle, full, number);
}

/* Processes of either: the ids, separated by spaces. */
static inline int ask_processes(const char *question, unsigned *count, Process *found) {
    char answer[LINE], *rest = answer, *next;
    unsigned room = *count;
    int result = ask(question, answer);
    if (result) return result;
    *count = 0;
    for (unsigned long pid; pid = strtoul(rest, &next, 10), next != rest; rest = next, ++*count)
        if (*count < room) found[*count] = (Process){.pid = (unsigned)pid};
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define ONE(name, type) \
    int name(void *handle, type *answer) { \
        u64 number; \
        int result = ask_gpu(handle, #name, &number); \
        if (!result) *answer = (type)number; \
        return result; \
    }
#define ONE_OF(name) \
    int name(void *handle, int which, unsigned *answer) { \
        u64 number; \
        int result = ask_gpu_about(handle, #name, (unsigned)which, &number); \
        if (!result) *answer = (unsigned)number; \
        return result; \
    }
#define PRESENT_AND_PENDING(name) \
    int name(void *handle, unsigned *present, unsigned *pending) { \
        u64 number; \
        int result = ask_gpu(handle, #name, &number); \
        if (!result) *present = *pending = (unsigned)number; \
        return result; \
    }
#define PROCESSES(name) \
    int name(void *handle, unsigned *count, Process *found) { \
        (void)handle; \
        return ask_processes(#name, count, found); \
    }

ONE(nvmlDeviceGetTotalEnergyConsumption, u64)
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned)
ONE_OF(nvmlDeviceGetClockInfo)
ONE_OF(nvmlDeviceGetMaxClockInfo)
ONE_OF(nvmlDeviceGetApplicationsClock)
ONE_OF(nvmlDeviceGetTemperature)
PRESENT_AND_PENDING(nvmlDeviceGetMigMode)
PRESENT_AND_PENDING(nvmlDeviceGetEccMode)
#ifndef OLD_DRIVER
ONE(nvmlDeviceGetCurrentClocksEventReasons, u64)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)
#endif

int nvmlInitWithFlags(unsigned flags) {
    char answer[LINE];
    int result = ask("nvmlInitWithFlags", answer);
    (void)flags;
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int result) { return result == 9 ? "Driver Not Loaded" : "another error"; }

int nvmlSystemGetDriverVersion(char *version, unsigned room) {
    char answer[LINE];
    int result = ask("nvmlSystemGetDriverVersion", answer);
    if (!result) snprintf(version, room, "%s", answer);
    return result;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    char answer[LINE];
    if (ask("uuid", answer) || strcmp(uuid, answer)) return NOT_FOUND;
    *handle = strncmp(uuid, "MIG-", 4) ? &gpu : &instance;
    return SUCCESS;
}

int nvmlDeviceIsMigDeviceHandle(void *handle, unsigned *answer) {
    *answer = handle == &instance;
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *handle, void **whole) {
    char answer[LINE];
    int result = ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", answer);
    (void)handle;
    *whole = &gpu;
    return result == NOT_SUPPORTED ? SUCCESS : result;
}

int nvmlDeviceGetViolationStatus(void *handle, int policy, Violation *found) {
    return ask_gpu_about(handle, "nvmlDeviceGetViolationStatus", (unsigned)policy, &found->violation_ns);
}

int nvmlDeviceGetFieldValues(void *handle, int count, Field *fields) {
    for (Field *one = fields; one < fields + count; ++one) {
        one->type = UNSIGNED_LONG_LONG;
        one->result = ask_gpu_about(handle, "nvmlDeviceGetFieldValues", one->field, &one->value.whole);
    }
    return SUCCESS;
}
