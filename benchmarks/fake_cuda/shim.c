/* Preloaded: answers what torch's autograd asks of a CUDA driver before it starts a thread for a device. */
#include <stdbool.h>

static int devices = 0;

void shim_set(int count) { devices = count; }
signed char _ZN3c104cuda12device_countEv(void) { return devices; }
signed char _ZN3c104cuda23device_count_ensure_non_zeroEv(void) { return devices ? devices : 1; }
bool _ZN3c104cuda17hasPrimaryContextEa(signed char device) { return false; }
