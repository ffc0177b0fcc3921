/* Stands for the driver's library, which says of everything that there is no device. */
#include <stddef.h>
int cuCtxGetCurrent(void){return 100;}
int cuCtxSetCurrent(void){return 100;}
int cuDeviceGet(void){return 100;}
int cuDeviceGetAttribute(void){return 100;}
int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a){*f=0;*a=0;return 0;}
int cuDevicePrimaryCtxRetain(void){return 100;}
int cuFuncGetAttribute(void){return 100;}
int cuFuncSetAttribute(void){return 100;}
int cuFuncSetCacheConfig(void){return 100;}
int cuGetErrorString(void){return 100;}
int cuLaunchCooperativeKernel(void){return 100;}
int cuLaunchKernel(void){return 100;}
int cuLinkAddData_v2(void){return 100;}
int cuLinkComplete(void){return 100;}
int cuLinkCreate_v2(void){return 100;}
int cuModuleGetFunction(void){return 100;}
int cuModuleLoad(void){return 100;}
int cuModuleLoadData(void){return 100;}
int cuModuleLoadDataEx(void){return 100;}
int cuModuleUnload(void){return 100;}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(void){return 100;}
int cuPointerGetAttribute(void){return 100;}
int cuTensorMapEncodeTiled(void){return 100;}
